"""What turns chapters into a book, and nothing else needs: claims, records and figures for the chapters themselves.

Its other files build the pages and grade the assignments, as `python -m genlib.book.…`; what they need beyond genlib's
own dependencies is the extra `book`. "How claims are decided" explains it.
"""
