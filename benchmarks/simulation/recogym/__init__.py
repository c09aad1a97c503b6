"""RecoGym as a judge from elsewhere, in a virtual environment of its own: `make recogym`."""
