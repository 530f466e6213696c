"""URIs -> bytes: files that appear whole, on a disk or in a bucket, and the directories of jobs' outputs.

`files` reads and writes by URI, `stores` and `s3` have the clients, `errors` turns their exceptions into error codes,
`uris` knows when two spellings are one place, and `output_lock` lets one run at a time write an output.
"""
