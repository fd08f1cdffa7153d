"""Models asked about videos: classes, windows, streams, embeddings, pictures."""
