"""Where images come from: drawn faces, FER2013, a user's folders."""
