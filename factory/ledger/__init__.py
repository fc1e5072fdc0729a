"""Which samples did each completed step use? Written as the run goes, read long after."""
