/* A sum, to see that the library loads and which vectors it uses. */
long F(lanes)(void) { return LANES; }
