"""From YAML to objects: schemas, composing, the check, building, and folders of runs."""
