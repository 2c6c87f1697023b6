"""What `pytest --nbmake chapters` leaves out: the assignments as students get them, which are there to be solved."""

collect_ignore_glob = ["assignments/release/*"]
