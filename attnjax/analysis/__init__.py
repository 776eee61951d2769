"""Looking at models: parameter tables, receptive fields, attention maps, figures."""
