"""Programs for developers: they generate documents, check rules, trace journeys. Not in the wheel."""
