"""Validation of images, and storage of small ones, in a child process.

Decisions

* Bytes of strangers are decoded where nothing else is: the child has no secret in its environment or memory, no
  database and no network business. A decoder that crashes ends the child and fails one image. The child runs as the
  same user, so this is not a sandbox: code that takes it over can do what that user may do with files.
* The parent trusts no answer. Answers have a fixed format and are checked; nothing is unpickled. An answer that breaks
  the format counts as the end of the child. Reconsider when a result needs more than a hash and two numbers.
* A child that ends took several images with it, and any that it worked on may be the cause. Each of these is tried
  once more, alone, in another child: one that crashes this one, too, is rejected as damaged, and the others are
  accepted. Where that child is killed, does not answer or has no memory, the machine is to blame and the image is tried
  again later. So neither a transient end nor the bad image of another task costs a paid result.
* The child counts the processor time of each image, and rejects one that takes too much: it knows which one is to
  blame, which the parent does not, and a slow disk takes none.
* The work does not share the GIL of the event loop.
"""
