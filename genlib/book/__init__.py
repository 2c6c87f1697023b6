"""What turns chapters into a book."""
