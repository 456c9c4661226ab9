"""What the host can do without any plugin: publish into a folder, report by HTTP and to the log.

These use the same hooks, registered through the same manager, as every stranger's plugin.
"""
