"""One file a scheme of addresses. A new file here is found by itself."""
