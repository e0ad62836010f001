"""A look as one HTML page: the page's parts, the arrays packed into it, and how it is put together."""
