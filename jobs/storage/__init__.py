"""Where bytes are: paths and URLs, input files, folders of objects, and patience with stores in trouble."""
