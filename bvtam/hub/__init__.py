"""From and to other places: the authors' files, the Hugging Face Hub."""
