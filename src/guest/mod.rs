//! Guest images: what they claim to be, and where they are loaded.
