"""What others write embeddings as, a module for each format. Imports what is beside it."""
