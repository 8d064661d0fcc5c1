"""What loading or using a drafter raises."""

from outrider_models.errors import ModelFileError

# A drafter that cannot be loaded or used. One class: what is wrong with a model's file is wrong with the drafter in it.
DrafterError = ModelFileError
