"""Pictures of records: the HTML report, the layer curve as SVG, PNG and plain text."""
