"""The page's panels, a module each: ``figures`` of a run, what the terminal says of them, and beside it the template that draws them."""
