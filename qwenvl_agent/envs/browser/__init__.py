"""Pages in a real Chromium: drawn from seeds, read by what can be clicked, written as data."""
