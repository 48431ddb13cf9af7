"""The data plane: frame sets, how they are made and how they are streamed."""
