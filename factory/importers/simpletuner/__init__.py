"""From SimpleTuner's `multidatabackend.json` to config options of this project."""
