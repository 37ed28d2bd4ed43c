"""What commands print: styled text, tables, redrawn screens, lengths of time."""
