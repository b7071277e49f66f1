"""The bundled language whose law is known."""
