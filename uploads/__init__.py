"""The only way bytes become an image, whoever sends them; knows storage and nothing else of ours.

Decisions worth remembering

* Bytes decide, names and declared types never do. Three types are taken; the first kilobyte refuses anything else,
  before the rest is read.
* The structure is walked by our own code from the first byte to the last, because decoders stop looking where the
  picture ends: Pillow opens a PNG without its end, and all of them ignore a web page or an archive behind it. What
  is missing at the end is told apart (`truncated`), since asking again may help. Reconsider a refusal when a camera
  or provider that people use writes such files; multi-picture JPEGs of phones are the one exception so far.
* Memory is flat whatever is sent. The pixel cap is checked on the header. PNG data is inflated in pieces and
  counted, not decoded. JPEG is decoded at an eighth. Where a decoder would need more than `DECODE_BYTES` (progressive
  JPEG, WebP) it is not asked: then the structure alone is the proof. Reconsider with a decoder in a process of its own.
* A passing decode is no proof of integrity: most flipped bits of a JPEG or WebP decode. The SHA-256 of what arrived
  is kept, to compare where a sender tells theirs.
* Images are kept as they came, metadata included: it is a paid result, and its provenance mark lives there.
* Pillow's format classes are used directly. `Image.open` guesses, warns through process-wide state, and follows
  multi-picture pointers.
"""
