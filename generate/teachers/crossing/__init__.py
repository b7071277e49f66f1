"""The bundled driving world whose law is known."""
