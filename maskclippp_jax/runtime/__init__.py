"""What a process runs on: command line, hosts, devices, files here and in buckets."""
