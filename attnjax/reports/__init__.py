"""Tables, HTML pages and figures of trained runs."""
