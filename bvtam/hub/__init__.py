"""From and to other places: the authors' files, the Hugging Face Hub."""

from .. import models as models  # registers the names
