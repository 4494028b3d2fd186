"""A service more or less: `python3 dev new NAME` writes one into every part of the house, `python3 dev remove NAME` takes it out."""
