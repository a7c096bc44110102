"""Show a verification: one HTML page, JSON, JUnit XML, Markdown and a picture grid."""
