"""Programs that measure speed and accuracy, for the figures of the documents."""
