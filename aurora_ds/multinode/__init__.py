"""Runs on many hosts: the host file, ssh to every host, and a launcher that is supervised."""
