"""FlexTok, one idea a file."""
