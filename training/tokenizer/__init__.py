"""UA-SID: the text of an ad -> embedding -> residual codes plus one hash level."""
