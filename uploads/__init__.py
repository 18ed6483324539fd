"""Validation and storage of images from any source; the only package that turns bytes into images.

Decisions

* Bytes decide, file names and declared types do not. Three types are accepted; anything else is rejected by the first
  kilobyte, before the rest is read.
* Our own code checks the structure from the first byte to the last, because decoders stop where the picture ends:
  Pillow opens a PNG without its end, and all decoders ignore a web page or an archive after it. A missing end is
  marked (`truncated`), since fetching again may help. Reconsider a rule when a common camera or provider writes such
  files; multi-picture JPEGs of phones are the one exception so far.
* Every accepted image has been decoded once, in bounded memory. The pixel limit is checked on the header. PNG data is
  inflated in pieces and counted to the byte. JPEG is decoded at an eighth, in a few rows at a time where all pixels are
  in one scan. Progressive JPEG and WebP are decoded as a whole; one that needs more than BROKER_MAX_DECODE_BYTES is
  rejected. `broker serve` and `broker worker` decode in a
  child process (`uploads/process/`), commands in threads.
* Missing pixels are an error, which decoders of JPEG hide: at the end marker they paint the rest grey. In a single scan
  every block must be there, except the last two; of several scans only the least possible length of the first is known.
* A successful decode does not prove integrity: most flipped bits of a JPEG or WebP decode. The SHA-256 of the received
  bytes is stored, to compare with the sender's where there is one.
* Images are stored as received, metadata included: they are paid results, and their provenance mark lives there.
* Pillow's format classes are used directly. `Image.open` guesses, warns through process-wide state, and follows
  multi-picture pointers.
"""
