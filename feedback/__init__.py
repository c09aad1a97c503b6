"""What came of answers: feedback taken in, joined to what was served, handed to training and to histories."""
