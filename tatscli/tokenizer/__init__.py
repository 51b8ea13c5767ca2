"""Tokenizers: how frames become codes. A new quantizer is a file, its recipe section and a line in
`build_quantizer`; tokenizers made elsewhere are adapters, opened by `open_tokenizer`."""
