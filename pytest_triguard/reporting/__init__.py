"""Reports of a run, made from records; nothing here knows of torch."""
