"""Validation and storage of images from any source; the only package that turns bytes into images.

Decisions

* Bytes decide, file names and declared types do not. Three types are accepted; anything else is rejected by the first
  kilobyte, before the rest is read.
* Our own code checks the structure from the first byte to the last, because decoders stop where the picture ends:
  Pillow opens a PNG without its end, and all decoders ignore a web page or an archive after it. A missing end is
  marked (`truncated`), since fetching again may help. Reconsider a rule when a common camera or provider writes such
  files; multi-picture JPEGs of phones are the one exception so far.
* Memory is constant. The pixel limit is checked on the header. PNG data is inflated in pieces and counted, not decoded.
  JPEG is decoded at an eighth. An image that would need more than `MAX_DECODE_BYTES` (progressive JPEG, WebP) is not
  decoded: the structure alone is the proof then. Reconsider with a decoder in a process of its own.
* A successful decode does not prove integrity: most flipped bits of a JPEG or WebP decode. The SHA-256 of the received
  bytes is stored, to compare with the sender's where there is one.
* Images are stored as received, metadata included: they are paid results, and their provenance mark lives there.
* Pillow's format classes are used directly. `Image.open` guesses, warns through process-wide state, and follows
  multi-picture pointers.
"""
