"""Sources of images: folders, tables, arrays, and data sets known by name."""
