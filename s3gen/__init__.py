"""S3Gen: speech tokens and a reference voice to 24 kHz audio, in exact ragged batches."""

from s3gen.config import HiFTNetConfig, S3GenConfig
from s3gen.model import S3GenModel
from s3gen.vocoder import HiFTNetModel
from s3gen.voice import Voice

__all__ = ["HiFTNetConfig", "HiFTNetModel", "S3GenConfig", "S3GenModel", "Voice"]
__version__ = "0.1.0"
