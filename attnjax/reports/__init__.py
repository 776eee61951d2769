"""Tables, pages and figures of trained runs."""
