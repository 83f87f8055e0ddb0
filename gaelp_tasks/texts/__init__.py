"""Reading what a model wrote: code, marks of citations, values; and cutting texts into chunks. Pure."""
