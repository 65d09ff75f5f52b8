"""Text generation from images and text."""
