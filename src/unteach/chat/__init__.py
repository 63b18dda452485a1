"""`unteach chat`: two models side by side in the browser, on this machine only."""
