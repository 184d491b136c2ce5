"""Imported last by the server that commands are forked from: what the libraries hold is not searched for garbage in each of them."""

import gc

gc.collect()
gc.freeze()
