"""Image sources: data modules, file formats, splits and audits."""
