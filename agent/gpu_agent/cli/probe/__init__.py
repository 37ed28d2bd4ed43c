"""`gpu-agent probe`: what it is asked, how it looks, its page and its document."""
