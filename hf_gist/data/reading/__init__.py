"""From the flags of a data set to rows: files, folders and Hub datasets, with the place of every row."""
