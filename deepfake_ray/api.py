"""What Python users import: `Detector`, and `train`, `score`, `evaluate` with the fields of their configurations."""

from deepfake_ray.scoring.detector import Detector as Detector
